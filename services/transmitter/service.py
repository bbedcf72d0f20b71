"""What the handlers of the API are given."""

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from grantbook.sdk.log import LogReader
from transmitter.streams import Seal, Terms
from transmitter.transmission import Transmission


class Service(Struct, frozen=True):
    """The transmitter at work. `seal` seals a receiver's secret; `now` is the clock (UTC)."""

    transmission: Transmission
    feed: LogReader
    terms: Terms
    seal: Seal
    new_id: Callable[[], str]
    now: Callable[[], datetime]
