"""What setup.cfg cannot say: its data_files, which are JupyterLab's extension, are for an editable installation too."""

import setuptools

# setuptools asks for this before it installs them, and has only has_data_files.
setuptools.Distribution.has_data = setuptools.Distribution.has_data_files

setuptools.setup()
