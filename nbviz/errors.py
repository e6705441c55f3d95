"""The exceptions and warnings of nbviz."""

from nbviz.core.errors import CompiledWarning as CompiledWarning
from nbviz.core.errors import ModelError as ModelError
from nbviz.core.errors import NoRectifierWarning as NoRectifierWarning
from nbviz.core.errors import NoSwitchWarning as NoSwitchWarning
from nbviz.core.errors import PictureError as PictureError
from nbviz.core.errors import PictureNotFoundError as PictureNotFoundError
from nbviz.scanning.scan import InterruptedWarning as InterruptedWarning
