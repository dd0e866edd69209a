"""Training examples, one and many."""

from cookbook_fx.data.datum import Datum as Datum
