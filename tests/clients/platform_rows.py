"""Random rows of a platform, as files with their description."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

START = datetime(2024, 1, 1, tzinfo=UTC)
ITEMS = 30
DESCRIPTION = """
[interactions]
files = "events.csv"
[interactions.columns]
user_id = "user"
item_id = "item"
event = "event"
time = "time"
quantity = "quantity"
price = "price"

[catalogue]
files = "items.csv"
[catalogue.columns]
item_id = "item"
shared_id = "item"
title = "title"
category = "category"
"""


def write_platform(folder: Path, seed: int, *, users: int = 60, days: int = 200) -> Path:
    """Write the rows of a platform; each user likes one of three kinds of items."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = ["user,item,event,time,quantity,price"]
    for user in range(users):
        for _ in range(12):
            liked = random.random() < 0.8
            item = 3 * random.integers(ITEMS // 3) + user % 3 if liked else random.integers(ITEMS)
            moment = START + timedelta(days=float(random.uniform(0, days)))
            time = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
            rows.append(f"u{user},i{item},purchase,{time},1,{random.integers(1, 9)}.5")
    (folder / "events.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines = ["item,title,category"]
    lines += [f"i{i},Title {i} 红茶,kind{i % 3}" for i in range(ITEMS)]
    (folder / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "crossrec.toml").write_text(DESCRIPTION, encoding="utf-8")
    return folder
