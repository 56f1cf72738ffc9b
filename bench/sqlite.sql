-- A database in memory; bench/run puts a number in place of @ROWS.
.mode csv
PRAGMA cache_size=-16000;
CREATE TABLE item(id INTEGER PRIMARY KEY, k INTEGER, grp INTEGER, name TEXT, body TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < @ROWS)
INSERT INTO item SELECT i, (i * 7919) % @ROWS, i % 1009, printf('name-%08d', (i * 104729) % @ROWS),
  printf('%032x%032x%032x', i * 2654435761, i * 40503, i) FROM n;
CREATE INDEX item_k ON item(k);
CREATE INDEX item_name ON item(name);
SELECT count(*), sum(k), min(name), max(name), sum(length(body)) FROM item;
SELECT grp, count(*), sum(k) FROM item GROUP BY grp ORDER BY 3 DESC LIMIT 20;
SELECT a.id, b.id, b.name FROM item a JOIN item b ON b.k = a.id WHERE a.grp = 7 ORDER BY a.id LIMIT 500;
SELECT count(*), sum(length(b.body)) FROM item a JOIN item b ON b.name = a.name;
UPDATE item SET k = k + 1 WHERE grp < 50;
SELECT substr(name, 1, 8) AS p, count(*), avg(k) FROM item GROUP BY p ORDER BY p LIMIT 50;
PRAGMA integrity_check;
