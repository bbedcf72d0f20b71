-- The read models: a cache of the log, that any day can be dropped and made anew from it. No name here says its schema:
-- the schema is named by the SHA-256 of this file and of the rules in `appraisal`, whose findings stand in these tables.
-- So a change to either makes the read models anew, beside the old ones.
--
-- The log's text may hold characters that `text` cannot (NUL); `json` keeps them escaped, where `jsonb` would refuse.

CREATE TABLE clients (
    client_key text PRIMARY KEY,
    client_id text NOT NULL,
    registered_position bigint NOT NULL,
    created_at timestamptz NOT NULL,
    source text NOT NULL,
    client_name text,
    -- Case-folded by the projector: what `lower` does depends on the database's locale. '' where there is no name.
    client_name_folded text NOT NULL,
    redirect_uris text[] NOT NULL,
    -- The same in one text, a line each: parts of them are looked for.
    redirect_text text NOT NULL,
    -- What filters find whole: flags; and `host:`, of redirects and their parent domains, `grant:`, `source:`.
    labels text[] NOT NULL,
    scope text,
    grant_types text[] NOT NULL,
    token_endpoint_auth_method text NOT NULL,
    family text NOT NULL,
    -- What the metadata alone tells.
    flags text[] NOT NULL,
    -- Flags that the log before the client tells. The first is about the redirects as they are now, and told anew when
    -- the metadata changes; the other is about the registration.
    new_redirect_host boolean NOT NULL,
    many_registrations boolean NOT NULL,
    -- As it registered, whatever it says now; and when, by the log's time.
    registered_family text NOT NULL,
    registered_at timestamptz NOT NULL,
    metadata json NOT NULL,
    -- The gate. A deletion stays for ever; a suspension until the client is resumed.
    suspended_position bigint,
    deleted_position bigint,
    deleted_at timestamptz,
    traits integer NOT NULL GENERATED ALWAYS AS (:traits) STORED
) WITH (fillfactor = 90);
CREATE INDEX clients_by_family ON clients (family);
CREATE INDEX clients_by_registered_family ON clients (registered_family, registered_position);

-- What filters and orders of the list look at, and nothing else. A row is made anew, by `to_list`, whenever something of
-- its client changes.
CREATE TABLE listed (
    registered_position bigint PRIMARY KEY,
    client_key text NOT NULL,
    created_at timestamptz NOT NULL,
    traits integer NOT NULL,
    -- Folded, and no longer than an index can hold.
    name text NOT NULL,
    -- Of `redirections`.
    redirects_key uuid NOT NULL,
    labels text[] NOT NULL
    -- What is read along an order, and counted, are indexes alone, where pages of this are known to be seen by all.
) WITH (fillfactor = 90, autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_scale_factor = 0.05);

CREATE VIEW to_list AS
SELECT
    c.registered_position, c.client_key, c.created_at, c.traits, g.status, left(c.client_name_folded, 600) AS name,
    -- Whoever registers chooses the text, so its key must be one that nobody finds two texts for: that takes 2^64 hashes.
    encode(substr(sha256(convert_to(c.redirect_text, 'UTF8')), 1, 16), 'hex')::uuid AS redirects_key,
    c.redirect_text AS redirects,
    ARRAY (SELECT substr(label, 6) FROM unnest(c.labels) AS label WHERE label LIKE 'host:%') AS hosts,
    ARRAY (SELECT label FROM unnest(c.labels) AS label WHERE label NOT LIKE 'host:%')
        || CASE WHEN c.many_registrations THEN '{many_registrations}'::text[] ELSE '{}' END
        || CASE WHEN c.new_redirect_host THEN '{new_redirect_host}'::text[] ELSE '{}' END
        || ('status:' || g.status) AS labels
FROM clients c
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN c.deleted_position IS NOT NULL THEN 'deleted'
        WHEN c.suspended_position IS NOT NULL THEN 'suspended'
        ELSE 'active'
    END AS status
) g;

CREATE INDEX listed_by_created_at ON listed (created_at, registered_position) INCLUDE (traits, name, redirects_key);
CREATE INDEX listed_by_name ON listed (name, registered_position) INCLUDE (traits, created_at, redirects_key);
CREATE INDEX listed_by_redirects ON listed (redirects_key, registered_position) INCLUDE (traits, created_at, name);
-- Those without active grants stand as they came where they are sorted by these.
CREATE INDEX listed_closed ON listed (registered_position) INCLUDE (traits, name, created_at, redirects_key)
    WHERE :closed;
CREATE INDEX listed_by_labels ON listed USING gin (labels);

-- How many clients have just these traits; how many of each name; and of all that one redirects to. Agents are alike by
-- the thousand, so these are small, however many clients there are: lists are counted by them, and texts looked for here.
-- In use are those with active grants, as `standings` counts these: see `count_used`.
CREATE TABLE tallies (
    traits integer PRIMARY KEY,
    clients bigint NOT NULL,
    in_use bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- The same of each day (UTC) on which they were registered.
CREATE TABLE days (
    day date NOT NULL,
    traits integer NOT NULL,
    clients bigint NOT NULL,
    PRIMARY KEY (day, traits)
) WITH (fillfactor = 50);

CREATE TABLE names (
    name text NOT NULL,
    traits integer NOT NULL,
    clients bigint NOT NULL,
    in_use bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (name, traits)
) WITH (fillfactor = 80);

CREATE TABLE redirections (
    redirects_key uuid NOT NULL,
    traits integer NOT NULL,
    clients bigint NOT NULL,
    in_use bigint NOT NULL DEFAULT 0,
    -- A line each.
    redirects text NOT NULL,
    -- With their parent domains.
    hosts text[] NOT NULL,
    PRIMARY KEY (redirects_key, traits)
) WITH (fillfactor = 80);

-- Each character of a name with the one behind it: parts of one or two characters have no trigrams, and neither have
-- those without letters of ASCII in a row, where the database's locale knows no others.
CREATE FUNCTION pairs(said text) RETURNS tsvector LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 1000 AS $$
DECLARE
    found text[] := '{}';
BEGIN
    FOR place IN 1 .. length(said) LOOP
        found := found || substr(said, place, 2);
    END LOOP;
    RETURN array_to_tsvector(found);
END $$;

CREATE INDEX names_to_find ON names USING gin (name gin_trgm_ops, pairs(name));
CREATE INDEX redirections_to_find ON redirections USING gin (hosts, redirects gin_trgm_ops);

CREATE TYPE tally_change AS (traits integer, day date, name text, redirects_key uuid, change bigint);
-- Rows of `redirections` must be there, with none: a client's row does not say the text. See `apply_log`.
CREATE FUNCTION tally() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changes tally_change[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg((traits, day, name, redirects_key, change)::tally_change) INTO changes FROM (
            SELECT traits, (created_at AT TIME ZONE 'UTC')::date AS day, name, redirects_key, count(*) AS change
            FROM after GROUP BY 1, 2, 3, 4
        ) c;
    ELSE
        SELECT array_agg((traits, day, name, redirects_key, change)::tally_change) INTO changes FROM (
            SELECT traits, (created_at AT TIME ZONE 'UTC')::date AS day, name, redirects_key, sum(change) AS change FROM (
                SELECT traits, created_at, name, redirects_key, -1 AS change FROM before
                UNION ALL SELECT traits, created_at, name, redirects_key, 1 FROM after
            ) b GROUP BY 1, 2, 3, 4 HAVING sum(change) <> 0
        ) c;
    END IF;
    IF changes IS NULL THEN
        RETURN NULL;
    END IF;
    INSERT INTO tallies AS t (traits, clients)
    SELECT traits, sum(change) FROM unnest(changes) GROUP BY 1 HAVING sum(change) <> 0
    ON CONFLICT (traits) DO UPDATE SET clients = t.clients + excluded.clients;
    INSERT INTO days AS t (day, traits, clients)
    SELECT day, traits, sum(change) FROM unnest(changes) GROUP BY 1, 2 HAVING sum(change) <> 0
    ON CONFLICT (day, traits) DO UPDATE SET clients = t.clients + excluded.clients;
    INSERT INTO names AS t (name, traits, clients)
    SELECT name, traits, sum(change) FROM unnest(changes) GROUP BY 1, 2 HAVING sum(change) <> 0
    ON CONFLICT (name, traits) DO UPDATE SET clients = t.clients + excluded.clients;
    UPDATE redirections t SET clients = t.clients + c.change
    FROM (SELECT redirects_key, traits, sum(change) AS change FROM unnest(changes) GROUP BY 1, 2) c
    WHERE t.redirects_key = c.redirects_key AND t.traits = c.traits AND c.change <> 0;
    IF TG_OP = 'UPDATE' THEN
        DELETE FROM tallies WHERE clients = 0;
        DELETE FROM days t USING unnest(changes) c WHERE t.day = c.day AND t.traits = c.traits AND t.clients = 0;
        DELETE FROM names t USING unnest(changes) c WHERE t.name = c.name AND t.traits = c.traits AND t.clients = 0;
        DELETE FROM redirections t USING unnest(changes) c
        WHERE t.redirects_key = c.redirects_key AND t.traits = c.traits AND t.clients = 0;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tally_new AFTER INSERT ON listed REFERENCING NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION tally();
CREATE TRIGGER tally_changed AFTER UPDATE ON listed REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION tally();

-- What changes about a client all the time, apart from what hardly ever does: that stays on its pages.
-- Open grants are those that stand whatever the client's gate says, but for what lapsed and was not swept yet: see
-- `grants.open`. Grants without their client are counted, too, should it ever come.
CREATE TABLE standings (
    client_key text PRIMARY KEY,
    registered_position bigint,
    created_at timestamptz,
    status text NOT NULL DEFAULT 'active',
    -- That there ever were.
    grants bigint NOT NULL DEFAULT 0,
    open_grants bigint NOT NULL DEFAULT 0,
    -- Who have one of these.
    open_users bigint NOT NULL DEFAULT 0,
    active_grants bigint NOT NULL GENERATED ALWAYS AS (CASE status WHEN 'active' THEN open_grants ELSE 0 END) STORED,
    -- When a grant was last issued or extended. Never: '-infinity', so that it can be compared.
    last_granted_at timestamptz NOT NULL DEFAULT '-infinity',
    -- From the activity. Never used: '-infinity', so that it can be sorted by.
    last_activity_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 70);
CREATE INDEX standings_by_active_grants ON standings (active_grants, registered_position) INCLUDE (status);
CREATE INDEX standings_with_grants ON standings (created_at, registered_position) WHERE active_grants > 0;
CREATE INDEX standings_by_last_activity ON standings (last_activity_at, registered_position)
    INCLUDE (status, created_at);
CREATE INDEX standings_never_used ON standings (created_at, registered_position) INCLUDE (status)
    WHERE last_granted_at = '-infinity' AND last_activity_at = '-infinity';

-- Over all clients, with the grants that `standings` counts, and all of `users`: one row.
CREATE TABLE totals (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    grants bigint NOT NULL DEFAULT 0,
    active_grants bigint NOT NULL DEFAULT 0,
    users bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
INSERT INTO totals DEFAULT VALUES;

-- Open grants of a user at a client. Pairs that have none any more stay.
CREATE TABLE client_users (
    client_key text NOT NULL,
    user_key text NOT NULL,
    open_grants bigint NOT NULL,
    PRIMARY KEY (client_key, user_key)
) WITH (fillfactor = 80);

-- Hosts that a client ever redirected to, deleted ones too, and where in the log one first did.
CREATE TABLE redirect_hosts (
    host text PRIMARY KEY,
    first_position bigint NOT NULL,
    first_seen_at timestamptz NOT NULL
);

-- Room on each page, and no index on what activity changes: those updates stay on their page.
CREATE TABLE grants (
    client_key text NOT NULL,
    grant_key text NOT NULL,
    grant_id text NOT NULL,
    client_id text NOT NULL,
    user_key text NOT NULL,
    user_id text NOT NULL,
    -- NULL, and '' folded, where the user was erased.
    username text,
    username_folded text NOT NULL,
    scopes text[] NOT NULL,
    issued_position bigint NOT NULL,
    issued_at timestamptz NOT NULL,
    logged_expires_at timestamptz NOT NULL,
    -- Small refreshes are not in the log, so a grant counts as expired only from here on.
    lapses_at timestamptz NOT NULL,
    -- Of the client's metadata as the user was shown it. NULL in older events.
    metadata_sha256 text,
    revoked_position bigint,
    revoked_at timestamptz,
    revoked_reason text,
    -- From the activity.
    last_activity_at timestamptz NOT NULL DEFAULT '-infinity',
    activity_expires_at timestamptz,
    uses bigint NOT NULL DEFAULT 0,
    -- Whether `standings` counts it: neither revoked nor cut off with its user, nor lapsed, as far as that was swept.
    open boolean NOT NULL,
    PRIMARY KEY (client_key, grant_key)
) WITH (fillfactor = 80);
CREATE INDEX grants_to_lapse ON grants (lapses_at) WHERE open;
CREATE INDEX grants_of_clients ON grants (client_key, issued_at, issued_position);
CREATE INDEX grants_of_users ON grants (user_key, issued_at, issued_position);

-- How often the grants of a client were used on a day (UTC). Days that the activity's stream no longer holds go.
CREATE TABLE client_days (
    day date NOT NULL,
    client_key text NOT NULL,
    uses bigint NOT NULL,
    PRIMARY KEY (day, client_key)
) WITH (fillfactor = 80);

-- Events of the log in each hour (its own time, UTC), by type: what is plotted over time.
CREATE TABLE hours (
    hour timestamptz NOT NULL,
    type text NOT NULL,
    events bigint NOT NULL,
    PRIMARY KEY (hour, type)
) WITH (fillfactor = 10);

CREATE TABLE users (
    user_key text PRIMARY KEY,
    -- The last cut-off: 0 where there was none.
    cut_off_position bigint NOT NULL DEFAULT 0,
    -- Whether a client was ever let in, and not only cut off.
    granted boolean NOT NULL
);
CREATE INDEX users_who_granted ON users (user_key) WHERE granted;
CREATE INDEX users_who_never_granted ON users (user_key) WHERE NOT granted;

CREATE TABLE cut_offs (
    user_key text NOT NULL,
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (user_key, position)
);

CREATE TABLE events (
    position bigint PRIMARY KEY,
    event_id text NOT NULL,
    type text NOT NULL,
    recorded_at timestamptz NOT NULL,
    client_key text,
    grant_key text,
    user_key text,
    -- JSON as it was written: nothing in Postgres looks into it, so Postgres need not read it.
    body text NOT NULL
);
CREATE INDEX events_by_time ON events (recorded_at, position);
CREATE INDEX events_of_clients ON events (client_key, position) WHERE client_key IS NOT NULL;
CREATE INDEX events_of_clients_alone ON events (client_key, position) WHERE grant_key IS NULL;
CREATE INDEX events_of_grants ON events (grant_key, position) WHERE grant_key IS NOT NULL;
CREATE INDEX events_of_users ON events (user_key, position) WHERE user_key IS NOT NULL;

-- How far each read model is, moved in the transaction that applies what it counts. `identity` is the stream's.
CREATE TABLE checkpoints (
    read_model text PRIMARY KEY,
    sequence bigint NOT NULL DEFAULT 0,
    event_id text NOT NULL DEFAULT '',
    identity text NOT NULL DEFAULT '',
    moved_at timestamptz NOT NULL DEFAULT now(),
    halted text
) WITH (fillfactor = 10);
INSERT INTO checkpoints (read_model) VALUES ('log'), ('activity');

CREATE TYPE ending AS (at timestamptz, reason text);

-- What a grant is *now*: computed here and nowhere else, from its own gate, its client's, its user's, and the time.
-- Deleting a client with a million grants changes one row of `clients`.
CREATE VIEW grant_states AS
SELECT
    g.*,
    c.client_name,
    least(greatest(g.logged_expires_at, g.activity_expires_at), g.lapses_at) AS expires_at,
    s.stands,
    s.stands AND c.suspended_position IS NULL AS active,
    CASE
        WHEN NOT s.stands THEN
            -- The earliest fact that ended it, by the log's time; of two at once the first in the log.
            (SELECT (f.at, f.reason)::ending
            FROM (
                SELECT g.revoked_at, g.revoked_at, g.revoked_position, g.revoked_reason
                WHERE g.revoked_position IS NOT NULL
                UNION ALL
                SELECT c.deleted_at, c.deleted_at, c.deleted_position, 'client_deleted'
                WHERE c.deleted_position IS NOT NULL
                UNION ALL
                SELECT k.recorded_at, k.recorded_at, k.position, k.reason
                FROM cut_offs k
                WHERE k.user_key = g.user_key AND k.position > g.issued_position
                UNION ALL
                SELECT g.lapses_at, least(greatest(g.logged_expires_at, g.activity_expires_at), g.lapses_at), NULL, 'expired'
                WHERE g.lapses_at <= now()
            ) AS f (since, at, position, reason)
            ORDER BY f.since, f.position NULLS LAST
            LIMIT 1)
    END AS ending
FROM grants g
JOIN clients c USING (client_key)
LEFT JOIN users u USING (user_key)
CROSS JOIN LATERAL (
    SELECT
        g.revoked_position IS NULL
        AND c.deleted_position IS NULL
        AND coalesce(u.cut_off_position, 0) < g.issued_position
        AND g.lapses_at > now() AS stands
) s;

CREATE VIEW grant_items AS
SELECT
    *,
    CASE
        WHEN active THEN 'active'
        WHEN stands THEN 'suspended'
        WHEN (ending).reason = 'expired' THEN 'expired'
        ELSE 'revoked'
    END AS status,
    (ending).at AS ended_at,
    (ending).reason AS ended_reason
FROM grant_states;
