"""What a classifier's head says: of each text (B, L), or of each of its tokens (B, T, L)."""

from torch import Tensor, nn

from common.tasks.batches import Batch


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The head's output in float32, (B, L) or (B, T, L)."""
    found: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return found.float()


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """The likeliest label's index, (B,) or (B, T)."""
    return logits(model, batch).argmax(dim=-1)


def probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """Each label's probability, (B, L) or (B, T, L)."""
    return logits(model, batch).softmax(dim=-1)
