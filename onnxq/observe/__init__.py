"""Observing: what has to be known of a model's tensors, above all ranges, from data."""

from onnxq.observe.calibrators import CALIBRATORS as CALIBRATORS
from onnxq.observe.calibrators import Calibrator as Calibrator
from onnxq.observe.calibrators import parse_calibrator as parse_calibrator
from onnxq.observe.gram import GramMatrix as GramMatrix
from onnxq.observe.histogram import Histogram as Histogram
from onnxq.observe.observations import Observations as Observations
from onnxq.observe.observations import merge_observations as merge_observations
from onnxq.observe.ranges import Range as Range
from onnxq.observe.ranges import Ranges as Ranges
from onnxq.observe.ranges import merge as merge
from onnxq.observe.run import calibrate as calibrate
from onnxq.observe.run import observe as observe
from onnxq.observe.sampling import SampledRows as SampledRows
from onnxq.observe.sampling import SampledValues as SampledValues
from onnxq.observe.statistics import ChannelStatistics as ChannelStatistics
from onnxq.observe.statistics import Moving as Moving
from onnxq.observe.statistics import Statistics as Statistics
