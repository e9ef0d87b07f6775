"""What one forward pass sees, and the bytes that depend on how its rows are laid out.

Letters as in `rlsgd.planner.activations`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlsgd.planner.architecture import Architecture

INT64, FP32 = 8, 4


@dataclass(frozen=True)
class Dtypes:
    """Bytes of a number in each place.

    Args:
        weight: parameters, gradients and optimizer states.
        compute: inputs and outputs of linear layers and attention.
        residual: the residual stream and the outputs of norms.
    """

    weight: int
    compute: int
    residual: int

    @property
    def autocasts(self) -> bool:
        """Whether every linear layer casts its input and its weight for itself."""
        return self.compute < self.residual


@dataclass(frozen=True)
class Batch:
    """B rows, each a prompt and a completion, padded to one length.

    Args:
        rows: B.
        tokens: T, of a row that the model sees: all but its last for the policy.
        scored: K, tokens of a row whose log-probabilities are computed; 0 for a critic.
        padded: some row is shorter than T, so that attention gets a mask.
    """

    rows: int
    tokens: int
    scored: int
    padded: bool

    @property
    def computed(self) -> int:
        """Tokens that go through the layers."""
        return self.rows * self.tokens

    @property
    def scores(self) -> int:
        """S = B K, tokens that the head predicts."""
        return self.rows * self.scored

    @property
    def mask_numel(self) -> int:
        """Entries of attention's mask: B T^2, or none."""
        return self.rows * self.tokens**2 if self.padded else 0

    def attention_bytes(self, model: Architecture, dtypes: Dtypes) -> int:
        """What attention keeps in one layer, without the mask.

        q and its output cAD each, k and v cGD each, and 4A for the log-sum-exp, a token. With a
        mask, which the grouped kernel does not take, k and v are repeated for every head: cAD each.
        """
        decoder = model.decoder
        assert decoder is not None
        kv_heads = decoder.heads if self.padded else model.kv_heads
        width = dtypes.compute * model.head_dim * 2 * (decoder.heads + kv_heads)
        return self.computed * (width + FP32 * decoder.heads)

    def index_bytes(self) -> int:
        """Ids and indices, once for all layers.

        Ids of the rows with their last token and the mask that spreads scores over them, 9 B (T +
        1); the K columns that are scored and the places of the S tokens in them: 8 (K + S).
        """
        whole = self.rows * (self.tokens + 1)
        return (INT64 + 1) * whole + INT64 * (self.scored + self.scores)

    def select_bytes(self, model: Architecture, dtypes: Dtypes) -> int:
        """What stands beside the head's input while it is scored, and is freed then.

        The last norm's output rNH and its K columns rSH; under autocast also the S vectors whose
        cast the head takes.
        """
        vectors = self.computed + (1 + dtypes.autocasts) * self.scores
        return dtypes.residual * vectors * model.hidden


@dataclass(frozen=True)
class SharedBatch(Batch):
    """One sequence of n prompts and then B completions, see `rlsgd.models.shared_prompts`.

    All are taken to be as long as the longest: then no copies are padded. Shorter ones are copied
    into rows of that length for attention, and keep no more than this.

    Args:
        rows: B.
        tokens: T = P + C, of a prompt and a completion that the model sees: all but the last.
        scored: C + 1.
        padded: has no meaning here.
        prompts: n.
        repeats_keys: keys and values are repeated for every head, as on a GPU.
    """

    prompts: int
    repeats_keys: bool

    @property
    def in_prompts(self) -> int:
        """n P"""
        return self.prompts * (self.tokens - self.in_completion)

    @property
    def in_completion(self) -> int:
        """C"""
        return self.scored - 1

    @property
    def computed(self) -> int:
        """N = n P + B C"""
        return self.in_prompts + self.rows * self.in_completion

    @property
    def mask_numel(self) -> int:
        """B C (P + C): what each token of a completion sees."""
        return self.rows * self.in_completion * self.tokens

    def attention_bytes(self, model: Architecture, dtypes: Dtypes) -> int:
        """What attention keeps in one layer, without the mask.

        q, outputs of prompts and completions, and the two joined: 3 c A D N. k and v: 2 c G D N,
        but under autocast k of the prompts alone, whose copy in the dtype of compute is kept.
        Each completion's keys and values after a copy of its prompt's: 2 c G D B (P + C), or A
        for G where they are repeated. The log-sum-exp: 4 A N.
        """
        decoder = model.decoder
        assert decoder is not None
        keys = self.in_prompts if dtypes.autocasts else self.computed
        kv_heads = decoder.heads if self.repeats_keys else model.kv_heads
        vectors = 3 * decoder.heads * self.computed + model.kv_heads * (keys + self.computed)
        vectors += 2 * kv_heads * self.rows * self.tokens
        sums = FP32 * decoder.heads * self.computed
        return dtypes.compute * model.head_dim * vectors + sums

    def index_bytes(self) -> int:
        """Ids and indices, once for all layers.

        Ids of the sequence 8 N; each completion's prompt 8 B; the predicting positions 8 S; and the
        mask that spreads scores over padded rows, B (T + 1).
        """
        ids = self.computed + self.rows + self.scores
        return INT64 * ids + self.rows * (self.tokens + 1)

    def select_bytes(self, model: Architecture, dtypes: Dtypes) -> int:
        """As in rows, but that the columns are the S vectors themselves."""
        vectors = self.computed + dtypes.autocasts * self.scores
        return dtypes.residual * vectors * model.hidden
