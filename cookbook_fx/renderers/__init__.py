"""Messages to tokens and back, one chat format a file."""

from cookbook_fx.renderers.gpt_oss import gpt_oss as gpt_oss
from cookbook_fx.renderers.registry import RENDERERS as RENDERERS
from cookbook_fx.renderers.registry import RendererFactory as RendererFactory
from cookbook_fx.renderers.registry import get_renderer as get_renderer
from cookbook_fx.renderers.registry import register_renderer as register_renderer
from cookbook_fx.renderers.renderer import ParsedResponse as ParsedResponse
from cookbook_fx.renderers.renderer import ParseTermination as ParseTermination
from cookbook_fx.renderers.renderer import Renderer as Renderer
from cookbook_fx.renderers.renderer import SupervisedExample as SupervisedExample
from cookbook_fx.renderers.renderer import TrainOnWhat as TrainOnWhat
