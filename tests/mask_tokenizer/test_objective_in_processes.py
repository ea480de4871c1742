"""objective.py in two processes: both move the same codes, in the same optimizer steps, to the same vectors."""

import multiprocessing

import torch
import torch.distributed as dist
from tiny_models import random_squares, tiny_model

from himtok_plugin.mask_tokenizer.objective import StageOneObjective

PROCESSES, STEPS, BATCHES = 2, 8, 4


def train_codebook(rank, address, queue):
    """Run optimizer steps of several batches, and put the codebook after each of them into the queue."""
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # each process draws other latents
    model = tiny_model(codebook_ready=True).train()
    objective = StageOneObjective(model, dead_code_steps=3)
    codebooks, used = [], []
    for step in range(STEPS):
        codes = [
            objective(random_squares(2, seed=100 * rank + BATCHES * step + batch), step).codes
            for batch in range(BATCHES)
        ]
        codebooks.append(model.quantize.codebook().detach().numpy())
        used.append(sorted(set(torch.cat(codes).flatten().tolist())))
    queue.put((rank, codebooks, used))
    dist.destroy_process_group()


def test_codes_are_moved_alike_and_only_when_no_process_used_them(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    queue = spawn.Queue()
    processes = [spawn.Process(target=train_codebook, args=(r, tmp_path / "store", queue)) for r in range(PROCESSES)]
    for process in processes:
        process.start()
    found = sorted((queue.get(timeout=120) for _ in processes), key=lambda entry: entry[0])
    for process in processes:
        process.join(timeout=120)
    (_, first, used), (_, second, other_used) = found
    moved = []
    for step in range(1, STEPS):
        assert (first[step] == second[step]).all()
        changed = (first[step] != first[step - 1]).any(-1).nonzero()[0].tolist()
        recently = {code for past in (used, other_used) for codes in past[max(step - 3, 0) : step] for code in codes}
        assert not recently & set(changed)
        moved += [step] * bool(changed)
    assert moved and moved[0] == 3  # after three steps, however many batches they had
