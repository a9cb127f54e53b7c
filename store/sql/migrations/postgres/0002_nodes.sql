-- Which nodes are alive. A node without a row, or past its time, is gone.

CREATE TABLE nodes (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    alive_until BIGINT NOT NULL
);
