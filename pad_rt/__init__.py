"""PAD-RT: personalized alignment at decoding time, at the price of plain decoding.

from pad_rt import Generator
Generator.load("bundle").generate("How do I boil an egg?", preference="cheerful and concise").text
"""

from pad_rt.config import GenerationConfig
from pad_rt.conversation import Conversation
from pad_rt.engine.ticket import Event, Ticket
from pad_rt.generator import Generator
from pad_rt.logprobs import TokenLogprobs
from pad_rt.preference import Preference
from pad_rt.result import GenerationResult, Timing, Usage
from pad_rt.score.reply_score import ReplyScore, TokenScore
from pad_rt.stream import TextStream
from pad_rt.taste.prior import Prior
from pad_rt.taste.question import Question
from pad_rt.taste.reply_pool import ReplyPool
from pad_rt.taste.taste import Taste
from pad_rt.text.prompt import EncodedPrompt
from pad_runtime.errors import PadError

__all__ = [
    "Conversation",
    "EncodedPrompt",
    "Event",
    "GenerationConfig",
    "GenerationResult",
    "Generator",
    "PadError",
    "Preference",
    "Prior",
    "Question",
    "ReplyPool",
    "ReplyScore",
    "Taste",
    "TextStream",
    "Ticket",
    "Timing",
    "TokenLogprobs",
    "TokenScore",
    "Usage",
]
