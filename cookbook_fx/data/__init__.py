"""What every loss and every engine sees: examples, and how many of them become rows."""

from cookbook_fx.data.buckets import bucket as bucket
from cookbook_fx.data.buckets import power_of_two as power_of_two
from cookbook_fx.data.datum import Datum as Datum
from cookbook_fx.data.packing import MICRO_BATCH_TOKENS as MICRO_BATCH_TOKENS
from cookbook_fx.data.packing import PackedRows as PackedRows
from cookbook_fx.data.packing import each_alone as each_alone
from cookbook_fx.data.packing import pack as pack
from cookbook_fx.data.packing import row_count as row_count
