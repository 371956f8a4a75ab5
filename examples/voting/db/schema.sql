-- One row per voter. (entry_ms, entry_seq) is the place of the vote in the queue: an older vote that arrives
-- late, because the worker that had it died, does not replace a newer one.
CREATE TABLE votes (
  voter     text   PRIMARY KEY,
  choice    text   NOT NULL,
  entry_ms  bigint NOT NULL,
  entry_seq bigint NOT NULL
);

