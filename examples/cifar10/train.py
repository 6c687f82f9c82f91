"""Train a ResNet-18 on CIFAR-10, on a GPU or the CPU; resumes from its checkpoint.

    gpuledger run sweep.toml                          the whole sweep
    python train.py --lr 0.1 --epochs 30              one run by hand
    python train.py --data fake --epochs 1 --limit 256 --width 8    a trial without internet

Parameters arrive as arguments, from a gpuledger worker as well as by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import math
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms
from torchvision.models.resnet import BasicBlock

import gpuledger

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
DEFAULT_DATA = Path(__file__).parent / "data"
TERMINATED = 128 + signal.SIGTERM


def main() -> None:
    """Train, evaluate after each epoch, and keep a checkpoint."""
    options = parse_options()
    seed_everything(options.seed)
    device = choose_device(options.device)
    run = Run(options, device)
    run.resume()
    signal.signal(signal.SIGTERM, run.ask_to_stop)
    while run.epoch < options.epochs:
        loss = run.train()
        accuracy = run.evaluate()
        run.finish_epoch(loss=loss, val_accuracy=accuracy)
        print(f"epoch {run.epoch}/{options.epochs}: loss {loss:.4f}, val_accuracy {accuracy:.4f}")


def parse_options() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description="Train a ResNet-18 on CIFAR-10.")
    parser.add_argument("--data", choices=["cifar10", "fake"], default="cifar10")
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA, help="for the download")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=gpuledger.seed())
    parser.add_argument("--width", type=int, default=64, help="channels of the first layer")
    parser.add_argument("--limit", type=int, help="use only so many images")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    return parser.parse_args()


def seed_everything(seed: int) -> None:
    """Make a run repeatable, as far as the hardware allows."""
    random.seed(seed)
    torch.manual_seed(seed)


def choose_device(name: str) -> torch.device:
    """Return the GPU that the worker gave (always cuda:0), or the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Shuffled:
    """The images of one epoch in an order of its own, from any place in it onwards."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.seed = 0
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        yield from torch.randperm(self.size, generator=generator).tolist()[self.start :]

    def __len__(self) -> int:
        return max(self.size - self.start, 0)


def make_loaders(
    options: argparse.Namespace, device: torch.device
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return loaders of the training and the test images."""
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    train = load_data(options, train=True, transform=transforms.Compose([*augment, *normalize]))
    test = load_data(options, train=False, transform=transforms.Compose(normalize))
    common: dict[str, Any] = {
        "batch_size": options.batch_size,
        "num_workers": options.workers,
        "pin_memory": device.type == "cuda",
        "worker_init_fn": leave_stopping_to_the_main_process,
    }
    return (
        DataLoader(train, sampler=Shuffled(len(train)), generator=torch.Generator(), **common),
        DataLoader(test, generator=torch.Generator(), **common),
    )


def leave_stopping_to_the_main_process(_: int) -> None:
    """Let a loader outlive a SIGTERM that went to all processes of the task.

    The main process still wants to save a checkpoint, and ends its loaders itself.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def load_data(options: argparse.Namespace, *, train: bool, transform: Any) -> Any:
    """Return images and labels; the real ones are downloaded once for all tasks of a machine."""
    if options.data == "fake":
        size = options.limit or (50_000 if train else 10_000)
        first = 0 if train else 1_000_000  # other images than those of the training
        return datasets.FakeData(size, (3, 32, 32), 10, transform, random_offset=first)
    with exclusively(options.data_dir):
        data = datasets.CIFAR10(options.data_dir, train=train, transform=transform, download=True)
    return Subset(data, range(options.limit)) if options.limit else data


@contextlib.contextmanager
def exclusively(folder: Path) -> Iterator[None]:
    """Let only one process at a time download into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_model(width: int) -> nn.Module:
    """Return a ResNet-18 for images of 32×32 (no stride, no pooling at the start).

    Args:
        width: Channels of the first stage; 64 is the ResNet-18 of the paper.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    channels = width
    for stage in range(4):
        out = width << stage
        shortcut, stride = None, 1
        if out != channels:
            stride = 2
            shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )
        layers += [BasicBlock(channels, out, stride, shortcut), BasicBlock(out, out)]
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def warm_cosine(step: int, steps: int) -> float:
    """Return the share of the learning rate: linear up for a tenth of the steps, cosine down."""
    warm = max(steps // 10, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min((step - warm) / max(steps - warm, 1), 1.0)))


class Run:
    """One training, with all that it needs to go on after an interruption."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options = options
        self.device = device
        self.path = gpuledger.task_dir() / "checkpoint.pt" if in_worker() else None
        self.train_loader, self.test_loader = make_loaders(options, device)
        self.model = make_model(options.width).to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=options.lr,
            momentum=0.9,
            weight_decay=options.weight_decay,
            nesterov=True,
        )
        steps = options.epochs * len(self.train_loader)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warm_cosine(step, steps)
        )
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        self.epoch = 0  # finished ones
        self.seen = 0  # images of the epoch that runs
        self.loss_sum = torch.zeros((), device=device)  # over them
        self.metrics: dict[str, float] = {}
        self.stopping = False

    def train(self) -> float:
        """Train one epoch, or what is left of it; return the mean loss."""
        self.model.train()
        seed = self.options.seed * 1_000_003 + self.epoch
        self.train_loader.sampler.seed, self.train_loader.sampler.start = seed, self.seen
        self.train_loader.generator.manual_seed(seed)  # of its processes
        for images, labels in self.train_loader:
            images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                loss = self.criterion(self.model(images), labels)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            self.loss_sum += loss.detach() * len(labels)
            self.seen += len(labels)
            self.stop_if_asked()
        return float(self.loss_sum) / max(self.seen, 1)

    def evaluate(self) -> float:
        """Return the share of test images that are classified rightly."""
        self.model.eval()
        right, seen = torch.zeros((), device=self.device), 0
        with torch.inference_mode():
            for images, labels in self.test_loader:
                self.stop_if_asked()
                images = images.to(
                    self.device, non_blocking=True, memory_format=torch.channels_last
                )
                with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                    found = self.model(images).argmax(dim=1)
                right += (found == labels.to(self.device, non_blocking=True)).sum()
                seen += len(labels)
        return float(right) / max(seen, 1)

    def finish_epoch(self, **metrics: float) -> None:
        """Keep and report what came out of an epoch."""
        self.epoch += 1
        self.seen = 0
        self.loss_sum.zero_()
        self.metrics = metrics
        self.save()
        gpuledger.report(step=self.epoch, total=self.options.epochs, **metrics)

    def ask_to_stop(self, *_: object) -> None:
        """Handle SIGTERM: save and leave before the next batch."""
        self.stopping = True

    def stop_if_asked(self) -> None:
        """Save and leave, after SIGTERM."""
        if self.stopping:
            self.save()
            print(f"told to stop in epoch {self.epoch + 1}, after {self.seen} images", flush=True)
            sys.exit(TERMINATED)

    def save(self) -> None:
        """Write a checkpoint: whole or not at all."""
        if self.path is None:
            return
        kept: dict[str, Any] = {name: part.state_dict() for name, part in self.parts().items()}
        kept |= {"epoch": self.epoch, "seen": self.seen, "loss_sum": self.loss_sum}
        kept |= {"metrics": self.metrics, "rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            kept["cuda_rng"] = torch.cuda.get_rng_state()
        draft = self.path.with_suffix(".draft")
        with draft.open("wb") as file:
            torch.save(kept, file)
            file.flush()
            os.fsync(file.fileno())  # a machine that loses power must not leave it empty
        draft.replace(self.path)

    def resume(self) -> None:
        """Go on where an earlier attempt of this task was interrupted."""
        if self.path is None or not self.path.exists():
            return
        kept = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(kept[name])
        torch.set_rng_state(kept["rng"])
        if self.device.type == "cuda" and "cuda_rng" in kept:
            torch.cuda.set_rng_state(kept["cuda_rng"])
        self.epoch, self.seen, self.metrics = kept["epoch"], kept["seen"], kept["metrics"]
        self.loss_sum.copy_(kept["loss_sum"])
        if self.metrics:  # an attempt that has nothing left to do has a result, too
            gpuledger.report(step=self.epoch, total=self.options.epochs, **self.metrics)
        print(f"resumed after epoch {self.epoch} and {self.seen} images of the next")

    def parts(self) -> dict[str, Any]:
        """Return everything with a state."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }


def in_worker() -> bool:
    """Tell whether a gpuledger worker runs this script."""
    return "GPULEDGER_TASK" in os.environ


if __name__ == "__main__":
    main()
