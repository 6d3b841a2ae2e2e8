"""Fine-tune a reduced model in a training loop of your own.

python examples/fine_tune.py

Prints the loss of each step. Model and images are small and random here. Some methods add terms to the loss: what they
compute on the way is in `out.tokens.aux`, and those that learn from the unreduced model have an `objective`.
"""

import copy

import timm
import torch
from torch.nn import functional as F

import tpbench

STEPS = 5


def main() -> None:
    """Fine-tune all weights of a model that DynamicViT reduces."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=64, depth=4, num_heads=2, num_classes=10
    )
    teacher = tpbench.reduce(copy.deepcopy(model).eval(), "none")  # a copy: `reduced` shares the weights of `model`
    reduced = tpbench.reduce(model, "dynamicvit", "0.5@1,2").train()
    optimizer = torch.optim.AdamW(reduced.parameters(), lr=1e-3)
    images = torch.randn(32, 3, 32, 32)
    labels = torch.randint(10, (32,))
    losses = []
    for step in range(STEPS):
        with torch.no_grad():
            target = teacher.forward_tokens(images)
        out = reduced.forward_tokens(images)
        loss = F.cross_entropy(out.logits, labels) + sum(out.tokens.aux.values())
        loss = loss + sum(reduced.objective(out, target).values())  # empty for methods without a teacher
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step}: loss {losses[-1]:.3f}")
    assert losses[-1] < losses[0]
    print(f"tokens after each block: {', '.join(map(str, reduced.eval().forward_tokens(images[:1]).counts))}")


if __name__ == "__main__":
    main()
