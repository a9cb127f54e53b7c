-- Which nodes are alive. A node without a row, or past its time, is gone.

CREATE TABLE nodes (
    id          TEXT    NOT NULL PRIMARY KEY,
    alive_until INTEGER NOT NULL
) STRICT;
