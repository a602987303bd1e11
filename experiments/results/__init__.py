"""Results on disk, and the pages that show them."""

from experiments.results.files import (
    Session as Session,
    claim as claim,
    read_table as read_table,
    write_table as write_table,
    write_whole as write_whole,
)
