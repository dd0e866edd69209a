"""What is known about models by name, and what follows from their shapes; nothing is fetched."""

from cookbook_fx.catalog.hyperparameters import (
    LORA_LR_OVER_FULL_FINETUNE_LR as LORA_LR_OVER_FULL_FINETUNE_LR,
)
from cookbook_fx.catalog.hyperparameters import (
    get_full_finetune_lr_multiplier as get_full_finetune_lr_multiplier,
)
from cookbook_fx.catalog.hyperparameters import get_lora_lr_multiplier as get_lora_lr_multiplier
from cookbook_fx.catalog.hyperparameters import get_lr as get_lr
from cookbook_fx.catalog.models import CATALOG as CATALOG
from cookbook_fx.catalog.models import Catalog as Catalog
from cookbook_fx.catalog.models import ModelAttributes as ModelAttributes
from cookbook_fx.catalog.models import get_model_attributes as get_model_attributes
from cookbook_fx.catalog.models import (
    get_recommended_renderer_name as get_recommended_renderer_name,
)
from cookbook_fx.catalog.models import (
    get_recommended_renderer_names as get_recommended_renderer_names,
)
from cookbook_fx.catalog.models import renderer_warning as renderer_warning
from cookbook_fx.catalog.models import without_suffix as without_suffix
from cookbook_fx.catalog.shapes import LoRAParts as LoRAParts
from cookbook_fx.catalog.shapes import ModelShapes as ModelShapes
from cookbook_fx.catalog.shapes import (
    get_full_finetune_param_count as get_full_finetune_param_count,
)
from cookbook_fx.catalog.shapes import get_hidden_size as get_hidden_size
from cookbook_fx.catalog.shapes import get_lora_param_count as get_lora_param_count
from cookbook_fx.catalog.shapes import lora_params_per_rank as lora_params_per_rank
