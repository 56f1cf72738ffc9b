#!/bin/bash
# sqlite3 with a database in memory: a million rows, indexes, joins, aggregates.
source "$(dirname "$0")/../lib/program.sh"
need sqlite3
rows=$((SCALE * 1000000))
cat >script.sql <<SQL
.mode csv
PRAGMA cache_size=-16000;
CREATE TABLE item(id INTEGER PRIMARY KEY, k INTEGER, grp INTEGER, name TEXT, body TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < $rows)
INSERT INTO item SELECT i, (i * 7919) % $rows, i % 1009, printf('name-%08d', (i * 104729) % $rows),
  printf('%032x%032x%032x', i * 2654435761, i * 40503, i) FROM n;
CREATE TABLE grp(id INTEGER PRIMARY KEY, title TEXT);
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM n WHERE i < 1008)
INSERT INTO grp SELECT i, printf('group %d', i) FROM n;
CREATE INDEX item_k ON item(k);
CREATE INDEX item_name ON item(name);
SELECT count(*), sum(k), min(name), max(name), sum(length(body)) FROM item;
SELECT g.title, count(*), sum(i.k) FROM item i JOIN grp g ON g.id = i.grp GROUP BY g.id ORDER BY 3 DESC LIMIT 20;
SELECT a.id, b.id, b.name FROM item a JOIN item b ON b.k = a.id WHERE a.grp = 7 ORDER BY a.id LIMIT 500;
UPDATE item SET body = name || body WHERE grp < 50;
DELETE FROM item WHERE grp = 11;
SELECT count(*), sum(length(body)) FROM item;
SELECT substr(name, 1, 8) AS p, count(*), avg(k) FROM item GROUP BY p ORDER BY p LIMIT 50;
PRAGMA integrity_check;
SQL
native sqlite3 :memory: <script.sql >native.out
[[ $(tail -1 native.out) == ok* && $(wc -l <native.out) -gt 100 ]] || fail "the golden run is odd"
budget_from_need
managed sqlite3 :memory: <script.sql >managed.out 2>program.err || fail "sqlite3: $?"
expect_same native.out managed.out
expect_paged
program_end
