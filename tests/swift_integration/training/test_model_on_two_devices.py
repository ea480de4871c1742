"""One process, a model on two devices (`device_map=auto`): the losses meet on one device.

No machine of the tests has two GPUs. `FakeTensorMode` computes shapes, data types and devices of tensors on devices
that do not exist, and refuses operations whose tensors are on different ones. It has no values.
"""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from runs import untie
from tiny_models import random_squares
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from himtok_plugin.masks import to_rle

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")


@pytest.fixture
def trainer(world, train, tmp_path, monkeypatch):
    """The trainer of stage 2, before its first step, on rows without images, whose shapes depend on no values."""
    from himtok_plugin.swift_integration.training.trainer import MaskTrainer

    found = []
    monkeypatch.setattr(MaskTrainer, "train", lambda self, *args, **kwargs: found.append(self))
    row = {
        "messages": [{"role": "user", "content": "Draw."}, {"role": "assistant", "content": "<mask> and <mask>."}],
        "masks": [to_rle(world.left), to_rle(world.right)],
    }
    options = {
        "model": untie(world.lmm, tmp_path / "untied"),
        "mask_loss_weight": 1,
        "hierarchical_loss_weight": 1,
        "use_logits_to_keep": False,
    }
    train([row] * 4, gradient_checkpointing=False, attn_impl="eager", **options)
    return found[0]


def move(module, device, mode, moved):
    """Move a module's tensors to a device that does not exist; tied ones stay tied."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None or isinstance(tensor, torch._subclasses.FakeTensor):
                    continue
                if id(tensor) not in moved:
                    fake = mode.from_tensor(tensor.detach()).to(device)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    moved[id(tensor)] = torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                tensors[name] = moved[id(tensor)]


def split(model, mode):
    """Put the last layer of the language model and the output layer on another device, as accelerate does."""
    language_model, moved = model.model.language_model, {}
    behind = (language_model.layers[-1], language_model.norm, model.lm_head)
    for part in behind:
        move(part, SECOND, mode, moved)
        add_hook_to_module(part, AlignDevicesHook(execution_device=SECOND))
    move(model, FIRST, mode, moved)
    add_hook_to_module(model, AlignDevicesHook(execution_device=FIRST, io_same_device=True))


def test_losses_of_a_model_on_two_devices_meet_on_the_first(trainer, monkeypatch):
    from himtok_plugin.swift_integration.training import trainer as module

    taps = []
    gather = module.gather_mask_logits
    monkeypatch.setattr(trainer, "_compute_acc", lambda *args, **kwargs: None)  # ms-swift's accuracy needs values
    monkeypatch.setattr(trainer, "_draw_levels", lambda: None)  # the loss draws some, and checks none
    monkeypatch.setattr(module, "gather_mask_logits", lambda *args: taps.append(args[0]) or gather(*args))
    batch = next(iter(trainer.get_train_dataloader()))
    encoding = trainer.mask_tokenizer.encoding
    encoding.encode(random_squares(1))  # it is loaded with the first mask
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        split(trainer.model, mode)
        for part in (encoding.quantize, encoding._model):
            move(part, FIRST, mode, {})
            monkeypatch.setattr(part, "to", lambda device, part=part: part)  # such tensors cannot be moved in place
        vars(trainer.args)["_setup_devices"] = FIRST
        batch = tree_map_only(torch.Tensor, lambda tensor: mode.from_tensor(tensor), batch)
        with trainer.compute_loss_context_manager():
            loss, outputs = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch), return_outputs=True)
    assert loss.device == outputs.logits.device == FIRST and loss.requires_grad
    assert trainer.model.lm_head.weight.device == SECOND
    (tapped,) = taps
    assert tapped is outputs.logits  # and not the output layer's own, on the second device
