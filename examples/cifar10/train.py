"""Train a ResNet-18 on CIFAR-10, on a GPU or the CPU; resumes from its checkpoint.

    gpuledger run sweep.toml                          the whole sweep
    python train.py --lr 0.1 --epochs 30              one run by hand
    python train.py --data fake --epochs 1 --limit 256 --width 8    a trial without internet

Parameters come from gpuledger when a worker runs this script, else from the command line.
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
from torch.utils.data import DataLoader, Dataset, Subset
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
    train_loader, test_loader = make_loaders(options, device)
    model = make_model(options.width).to(device, memory_format=layout(device))
    run = Run(model, train_loader, options, device)
    run.resume()
    signal.signal(signal.SIGTERM, run.ask_to_stop)
    for epoch in range(run.epoch, options.epochs):
        loss = run.train(train_loader)
        accuracy = evaluate(model, test_loader, device)
        run.epoch = epoch + 1
        run.save()
        gpuledger.report(step=run.epoch, total=options.epochs, loss=loss, val_accuracy=accuracy)
        print(f"epoch {run.epoch}/{options.epochs}: loss {loss:.4f}, val_accuracy {accuracy:.4f}")


def parse_options() -> argparse.Namespace:
    """Return the options; what gpuledger says goes before the command line's defaults."""
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
    parser.set_defaults(**{name.replace("-", "_"): v for name, v in gpuledger.params().items()})
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


def layout(device: torch.device) -> torch.memory_format:
    """Return the order of images in memory: tensor cores like another one than some CPUs."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


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
        "persistent_workers": options.workers > 0,
    }
    order = torch.Generator().manual_seed(options.seed)
    return (
        DataLoader(train, shuffle=True, drop_last=True, generator=order, **common),
        DataLoader(test, **common),
    )


def load_data(options: argparse.Namespace, *, train: bool, transform: Any) -> Dataset[Any]:
    """Return images and labels; the real ones are downloaded once for all tasks of a machine."""
    data: Dataset[Any]
    if options.data == "fake":
        size = options.limit or (50_000 if train else 10_000)
        return datasets.FakeData(size, (3, 32, 32), 10, transform, random_offset=0 if train else 1)
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
    """What a run needs to go on after an interruption."""

    def __init__(
        self,
        model: nn.Module,
        loader: DataLoader[Any],
        options: argparse.Namespace,
        device: torch.device,
    ) -> None:
        self.model = model
        self.device = device
        self.epoch = 0
        self.path = gpuledger.task_dir() / "checkpoint.pt" if in_worker() else None
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=options.lr,
            momentum=0.9,
            weight_decay=options.weight_decay,
            nesterov=True,
        )
        steps = options.epochs * max(len(loader), 1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warm_cosine(step, steps)
        )
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        self.stopping = False

    def train(self, loader: DataLoader[Any]) -> float:
        """Train one epoch; return the mean loss."""
        self.model.train()
        total = 0.0
        for images, labels in loader:
            if self.stopping:
                print("told to stop: the last epoch's checkpoint is kept", flush=True)
                sys.exit(TERMINATED)
            images = images.to(self.device, non_blocking=True, memory_format=layout(self.device))
            labels = labels.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
                loss = self.criterion(self.model(images), labels)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.scheduler.step()
            total += float(loss.detach())
        return total / max(len(loader), 1)

    def save(self) -> None:
        """Write a checkpoint: whole or not at all."""
        if self.path is None:
            return
        draft = self.path.with_suffix(".draft")
        kept: dict[str, Any] = {name: part.state_dict() for name, part in self.parts().items()}
        torch.save({**kept, "epoch": self.epoch, "rng": torch.get_rng_state()}, draft)
        draft.replace(self.path)

    def resume(self) -> None:
        """Go on where an earlier attempt of this task was interrupted."""
        if self.path is None or not self.path.exists():
            return
        kept = torch.load(self.path, map_location=self.device, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(kept[name])
        torch.set_rng_state(kept["rng"].cpu())
        self.epoch = kept["epoch"]
        print(f"resumed after epoch {self.epoch}")

    def parts(self) -> dict[str, Any]:
        """Return everything with a state."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }

    def ask_to_stop(self, *_: object) -> None:
        """Handle SIGTERM: leave before the next batch."""
        self.stopping = True


def in_worker() -> bool:
    """Tell whether a gpuledger worker runs this script."""
    return "GPULEDGER_TASK" in os.environ


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader[Any], device: torch.device) -> float:
    """Return the share of test images that are classified rightly."""
    model.eval()
    right = seen = 0
    for images, labels in loader:
        images = images.to(device, non_blocking=True, memory_format=layout(device))
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            found = model(images).argmax(dim=1).cpu()
        right += int((found == labels).sum())
        seen += len(labels)
    return right / max(seen, 1)


if __name__ == "__main__":
    main()
