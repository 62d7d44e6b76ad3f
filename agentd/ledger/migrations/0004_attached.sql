-- Sessions that were attached (a process or a container that ran already), and calls that were recognised in them.

ALTER TABLE sessions ADD COLUMN container TEXT NOT NULL DEFAULT '';   -- its id, where the session is one
ALTER TABLE sessions ADD COLUMN rules TEXT NOT NULL DEFAULT '';       -- by which its calls are recognised; '': they are not
ALTER TABLE calls ADD COLUMN recognition TEXT;                        -- JSON; NULL: the call was declared
