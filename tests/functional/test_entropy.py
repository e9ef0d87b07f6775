import pytest
import torch

from rlsgd.functional.entropy import top_entropy_threshold, validate_top_entropy


@pytest.mark.parametrize(
    ("fraction", "threshold"),
    # --- 1 token, 2 tokens (0.2 of 10), 3 (0.21 rounded up), all
    [(0.01, 9.0), (0.2, 8.0), (0.21, 7.0), (1.0, 0.0)],
)
def test_threshold(fraction, threshold):
    entropy = torch.tensor([3.0, 1.0, 4.0, 0.0, 5.0, 9.0, 2.0, 6.0, 8.0, 7.0])
    assert top_entropy_threshold(entropy, fraction).item() == threshold


@pytest.mark.parametrize("size", range(5, 200, 5))
def test_share_is_exact(size):
    """0.2 * 15 is 3.0000000000000004 or so: three tokens all the same."""
    entropy = torch.randperm(size).double()
    threshold = top_entropy_threshold(entropy, 0.2)
    assert int((entropy >= threshold).sum()) == size // 5


def test_ties_are_all_kept():
    entropy = torch.tensor([1.0, 2.0, 2.0, 2.0])
    assert int((entropy >= top_entropy_threshold(entropy, 0.25)).sum()) == 3


def test_fraction_is_checked():
    for fraction in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"^top_entropy_fraction must be above 0"):
            validate_top_entropy(fraction)
