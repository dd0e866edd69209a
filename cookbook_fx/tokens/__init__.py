"""Token sequences: what a tokenizer must offer, text made safe to tokenize, and stops."""

from cookbook_fx.tokens.codec import TextCodec as TextCodec
from cookbook_fx.tokens.codec import byte_lengths as byte_lengths
from cookbook_fx.tokens.codec import text_codec as text_codec
from cookbook_fx.tokens.sampled import TokensWithLogprobs as TokensWithLogprobs
from cookbook_fx.tokens.tokenizer import StopSequences as StopSequences
from cookbook_fx.tokens.tokenizer import Tokenizer as Tokenizer
