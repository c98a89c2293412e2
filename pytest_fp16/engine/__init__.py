"""What runs a model: evaluate, train, emulate, trace, randomness."""

from pytest_fp16.engine.torch_private import require_private

require_private()  # before any module here imports what a torch may lack
