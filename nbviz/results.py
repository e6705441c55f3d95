"""What the functions and statistics return, each named after the one that returns it."""

from nbviz.methods.ablation import AblateResult as AblateResult
from nbviz.methods.compare import CompareResult as CompareResult
from nbviz.methods.correspondence import CorrespondenceResult as CorrespondenceResult
from nbviz.methods.deletion_insertion import DeletionInsertionResult as DeletionInsertionResult
from nbviz.methods.evolution import CheckpointResult as CheckpointResult
from nbviz.methods.invariance import InvarianceResult as InvarianceResult
from nbviz.methods.kernels import KernelReportResult as KernelReportResult
from nbviz.methods.maximise import MaximiseResult as MaximiseResult
from nbviz.methods.occlusion import OcclusionResult as OcclusionResult
from nbviz.methods.occlusion import RegionEffectResult as RegionEffectResult
from nbviz.methods.paired import PairedAccuracyResult as PairedAccuracyResult
from nbviz.methods.report import ReportResult as ReportResult
from nbviz.methods.sanity import RandomisationResult as RandomisationResult
from nbviz.methods.top_patches import TopPatchesResult as TopPatchesResult
from nbviz.scanning.answers import AblationResult as AblationResult
from nbviz.scanning.answers import AccuracyResult as AccuracyResult
from nbviz.scanning.result import ScanResult as ScanResult
from nbviz.scanning.statistics import HistogramResult as HistogramResult
from nbviz.scanning.statistics import MomentsResult as MomentsResult
from nbviz.scanning.statistics import SparsityResult as SparsityResult
from nbviz.scanning.statistics import TopKResult as TopKResult
