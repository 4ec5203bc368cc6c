"""The rate limit: a bucket per project, filled by one call a second."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass
class Bucket:
    limit: int = 3600
    per_second: float = 1.0
    level: float | None = None
    at: datetime | None = None

    def take(self, now: datetime) -> bool:
        level = self.limit if self.level is None or self.at is None else self.level
        passed = 0.0 if self.at is None else max(0.0, (now - self.at).total_seconds())
        self.level, self.at = min(float(self.limit), level + passed * self.per_second), now
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def headers(self, now: datetime) -> dict[str, str]:
        level = self.limit if self.level is None else self.level
        full = now + timedelta(seconds=(self.limit - level) / self.per_second)
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(math.floor(level)),
            "RateLimit-Reset": str(math.ceil(full.timestamp())),
        }
