"""Messages to tokens and back, one chat format a file."""

from cookbook_fx.renderers.batch import build_supervised_batch as build_supervised_batch
from cookbook_fx.renderers.gpt_oss import gpt_oss as gpt_oss
from cookbook_fx.renderers.registry import RENDERERS as RENDERERS
from cookbook_fx.renderers.registry import RendererFactory as RendererFactory
from cookbook_fx.renderers.registry import get_renderer as get_renderer
from cookbook_fx.renderers.registry import register_renderer as register_renderer
from cookbook_fx.renderers.renderer import Renderer as Renderer
from cookbook_fx.renderers.renderer import SupervisedExample as SupervisedExample
from cookbook_fx.renderers.renderer import TrainOnWhat as TrainOnWhat
from cookbook_fx.renderers.response import ParsedResponse as ParsedResponse
from cookbook_fx.renderers.response import ParseFailure as ParseFailure
from cookbook_fx.renderers.response import ParseFailureKind as ParseFailureKind
from cookbook_fx.renderers.response import ParseTermination as ParseTermination
from cookbook_fx.renderers.response import classify_parse_failure as classify_parse_failure
from cookbook_fx.renderers.streaming import Delta as Delta
from cookbook_fx.renderers.streaming import Revision as Revision
from cookbook_fx.renderers.streaming import StreamingParser as StreamingParser
from cookbook_fx.renderers.streaming import StreamState as StreamState
from cookbook_fx.renderers.streaming import TextDelta as TextDelta
from cookbook_fx.renderers.streaming import ThinkingDelta as ThinkingDelta
