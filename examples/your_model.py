"""Reduce the tokens of a timm model of your own.

python examples/your_model.py

Prints how many patch tokens leave each block, the cost of the model, and the largest change of a logit. The weights are
random here; pass `pretrained=True` to timm, or load your own.
"""

import timm
import torch

import tpbench

SCHEDULE = "macs=0.6@3,6,9"  # 60 % of the unreduced model's multiply-adds; tokens leave in blocks 3, 6 and 9


def main() -> None:
    """Reduce a model and compare its logits and cost with those of the unreduced one."""
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224").eval()
    reduced = tpbench.reduce(model, "wkmedoids", SCHEDULE)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        before = model(images)
        after = reduced(images)
        counts = reduced.forward_tokens(images).counts
    unreduced = tpbench.reduce(model, "none")
    share = sum(reduced.macs().values()) / sum(unreduced.macs().values())
    print(f"patch tokens after each block: {', '.join(map(str, counts))}")
    print(f"multiply-adds: {share:.1%} of the unreduced model's, the clustering included")
    print(f"largest change of a logit: {(after - before).abs().max():.3f}")
    assert reduced.state_dict().keys() == model.state_dict().keys()


if __name__ == "__main__":
    main()
