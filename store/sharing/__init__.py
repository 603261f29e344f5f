"""Caches that lie elsewhere: what is offered there, and copying of it what one side lacks.

A copy has no more trust in the other side than in a disk: names are made from numbers and never taken from a listing,
tables of views have the key their folder is named after, and every shard is compared with the sha256 in its record
before it counts. Nothing that is finished on either side is ever replaced by something else.
"""

from __future__ import annotations

from store.sharing.checking import check_at, verify_at
from store.sharing.offers import FOLDER, Offer, OfferedPart, offer_at, offers
from store.sharing.pulling import pull
from store.sharing.pushing import push
from store.sharing.work import Copied

__all__ = [
    "FOLDER",
    "Copied",
    "Offer",
    "OfferedPart",
    "check_at",
    "offer_at",
    "offers",
    "pull",
    "push",
    "verify_at",
]
