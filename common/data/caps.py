"""How much of a file is ever taken: the same for every format, whatever the file says of itself."""

MAX_FILE_BYTES = 16_000_000_000  # as it lies on the disk, compressed or not
MAX_ROWS = 50_000_000
MAX_COLUMNS = 10_000
MAX_FIELD_BYTES = 1_000_000
# A row may hold many columns that nobody mapped; no more than this is taken into memory for one.
MAX_ROW_BYTES = 16_000_000
MAX_WORDS = 100_000  # of a row whose words have tags
