"""Results on disk, and the pages that show them."""

from experiments.results.files import (
    Session as Session,
    claim as claim,
    damaged as damaged,
    measured_anew as measured_anew,
    read_json as read_json,
    read_table as read_table,
    sessions_of as sessions_of,
    write_json as write_json,
    write_picture as write_picture,
    write_table as write_table,
    write_whole as write_whole,
    writing as writing,
)
