-- How a batch of the log is written, but for its events, which are copied before: one call, so that Postgres works on all
-- of it while the next one is made ready.
--
-- What the rows are before and after does not depend on how the log was cut into batches: a fact about something applies
-- only where that was recorded before it. Arrays hold each key once, as the batch was folded, but for `new_gates` and
-- `new_revocations`, twice where there is one before and one behind that which they are about, and for `new_granted`: when
-- grants were issued or extended, but for those in `new_grants`.

CREATE TYPE new_client AS (
    client_key text, client_id text, position bigint, registered_at timestamptz, created_at timestamptz, source text,
    client_name text, folded text, redirect_uris text, redirect_text text, labels text, scope text, grant_types text,
    auth_method text, family text, flags text, metadata json, redirect_hosts text
);
CREATE TYPE new_metadata AS (
    client_key text, position bigint, changed_at timestamptz,
    client_name text, folded text, redirect_uris text, redirect_text text, labels text, scope text, grant_types text,
    auth_method text, family text, flags text, metadata json, redirect_hosts text
);
CREATE TYPE new_gate AS (
    client_key text, position bigint, suspended_position bigint, deleted_position bigint, deleted_at timestamptz
);
-- An id is left out where it is its key, and a folded name where it is the name.
CREATE TYPE new_grant AS (
    client_key text, grant_key text, grant_id text, client_id text, user_key text, user_id text, username text,
    folded text, scopes text, position bigint, issued_at timestamptz, expires_at timestamptz, lapses_at timestamptz,
    metadata_sha256 text
);
CREATE TYPE new_extension AS (
    client_key text, grant_key text, position bigint, expires_at timestamptz, lapses_at timestamptz
);
CREATE TYPE new_granted AS (client_key text, position bigint, at timestamptz);
CREATE TYPE new_revocation AS (client_key text, grant_key text, position bigint, at timestamptz, reason text);
CREATE TYPE new_user AS (user_key text, granted boolean);
-- Grants of a user at a client that were issued, and by how much more are open.
CREATE TYPE counted AS (client_key text, user_key text, issued bigint, opened bigint);

-- A client that the batch registered.
CREATE TYPE came AS (client_key text, position bigint);

-- Under what a client is counted that came into use, 1, or went out of it, -1.
CREATE TYPE used AS (traits int, name text, redirects_key uuid, change int);

CREATE FUNCTION count_used(changes used[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF changes IS NULL THEN
        RETURN;
    END IF;
    WITH changed AS MATERIALIZED (
        SELECT traits, name, redirects_key, sum(change) AS change FROM unnest(changes)
        GROUP BY 1, 2, 3 HAVING sum(change) <> 0
    ), tallied AS (
        UPDATE tallies t SET in_use = t.in_use + c.change
        FROM (SELECT traits, sum(change) AS change FROM changed GROUP BY 1 HAVING sum(change) <> 0) c
        WHERE t.traits = c.traits
    ), named AS (
        UPDATE names t SET in_use = t.in_use + c.change
        FROM (SELECT name, traits, sum(change) AS change FROM changed GROUP BY 1, 2 HAVING sum(change) <> 0) c
        WHERE t.name = c.name AND t.traits = c.traits
    )
    UPDATE redirections t SET in_use = t.in_use + c.change
    FROM (
        SELECT redirects_key, traits, sum(change) AS change FROM changed GROUP BY 1, 2 HAVING sum(change) <> 0
    ) c
    WHERE t.redirects_key = c.redirects_key AND t.traits = c.traits;
END $$;

-- Under what those of these clients are counted that are in use. NULL where none is.
CREATE FUNCTION now_used(keys text[], change int) RETURNS used[] LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
    RETURN (
        SELECT array_agg((l.traits, l.name, l.redirects_key, change)::used)
        FROM standings s JOIN listed l ON l.registered_position = s.registered_position
        WHERE s.client_key = ANY(keys) AND s.active_grants > 0
    );
END $$;

CREATE FUNCTION count_grants(changes counted[], granted new_granted[], came came[]) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    turned used[];
    strangers text[];
BEGIN
    WITH by_user AS (
        SELECT client_key, user_key, sum(issued) AS issued, sum(opened) AS opened FROM unnest(changes) GROUP BY 1, 2
    ), pairs AS (
        INSERT INTO client_users AS u (client_key, user_key, open_grants)
        SELECT client_key, user_key, opened FROM by_user WHERE opened <> 0
        ON CONFLICT (client_key, user_key) DO UPDATE SET open_grants = u.open_grants + excluded.open_grants
        RETURNING client_key, user_key, open_grants
    ), by_client AS (
        SELECT b.client_key, sum(b.issued) AS issued, sum(b.opened) AS opened,
            coalesce(sum((p.open_grants > 0)::int - (p.open_grants - b.opened > 0)::int), 0) AS users
        FROM by_user b LEFT JOIN pairs p USING (client_key, user_key)
        WHERE b.issued <> 0 OR b.opened <> 0
        GROUP BY b.client_key
    ), latest AS (
        -- Of what stands before the registration nothing counts: of this batch's here; where it has yet to come, below.
        SELECT n.client_key, max(n.at) AS at
        FROM unnest(granted) n
        WHERE NOT EXISTS (SELECT FROM unnest(came) c WHERE c.client_key = n.client_key AND c.position > n.position)
        GROUP BY n.client_key
    ), counted AS (
        INSERT INTO standings AS s (client_key, grants, open_grants, open_users, last_granted_at)
        SELECT client_key, coalesce(b.issued, 0), coalesce(b.opened, 0), coalesce(b.users, 0),
            coalesce(l.at, '-infinity')
        FROM by_client b FULL JOIN latest l USING (client_key)
        ON CONFLICT (client_key) DO UPDATE SET grants = s.grants + excluded.grants,
            open_grants = s.open_grants + excluded.open_grants, open_users = s.open_users + excluded.open_users,
            last_granted_at = greatest(s.last_granted_at, excluded.last_granted_at)
        RETURNING client_key, status, open_grants, registered_position
    ), summed AS (
        UPDATE totals t SET grants = t.grants + c.issued, active_grants = t.active_grants + c.opened
        FROM (
            SELECT coalesce(sum(issued), 0) AS issued,
                coalesce(sum(opened) FILTER (WHERE status = 'active'), 0) AS opened
            FROM by_client JOIN counted USING (client_key)
        ) c
        WHERE c.issued <> 0 OR c.opened <> 0
    )
    SELECT (SELECT array_agg(client_key) FROM counted WHERE registered_position IS NULL), (
        SELECT array_agg((l.traits, l.name, l.redirects_key, sign(b.opened))::used)
        FROM by_client b JOIN counted c USING (client_key) JOIN listed l ON l.registered_position = c.registered_position
        WHERE c.status = 'active' AND (c.open_grants > 0) <> (c.open_grants - b.opened > 0)
    ) INTO strangers, turned;
    -- Nothing but grants counts of those whose registration has yet to come: that is known once their rows are seen.
    IF strangers IS NOT NULL THEN
        DELETE FROM standings WHERE client_key = ANY(strangers) AND grants = 0;
        UPDATE standings SET last_granted_at = '-infinity' WHERE client_key = ANY(strangers);
    END IF;
    PERFORM count_used(turned);
END $$;

-- Write grants, with the revocations among these that are theirs. How many are open now. None of them may be there.
CREATE FUNCTION issue(new_grants new_grant[], new_revocations new_revocation[]) RETURNS counted[] LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    changes counted[];
BEGIN
    WITH changed AS (
        INSERT INTO grants (client_key, grant_key, grant_id, client_id, user_key, user_id, username,
            username_folded, scopes, issued_position, issued_at, logged_expires_at, lapses_at, metadata_sha256,
            revoked_position, revoked_at, revoked_reason, open)
        SELECT n.client_key, n.grant_key, coalesce(n.grant_id, n.grant_key), coalesce(n.client_id, n.client_key),
            n.user_key, coalesce(n.user_id, n.user_key), n.username, coalesce(n.folded, n.username),
            n.scopes::text[], n.position, n.issued_at, n.expires_at, n.lapses_at, n.metadata_sha256,
            r.position, r.at, r.reason, r.position IS NULL AND n.lapses_at > now()
        FROM unnest(new_grants) n
        LEFT JOIN unnest(new_revocations) r
            ON r.client_key = n.client_key AND r.grant_key = n.grant_key AND r.position > n.position
        RETURNING client_key, user_key, open
    )
    SELECT array_agg((client_key, user_key, issued, opened)::counted) INTO changes
    FROM (
        SELECT client_key, user_key, count(*) AS issued, count(*) FILTER (WHERE open) AS opened
        FROM changed GROUP BY 1, 2
    ) c;
    RETURN changes;
END $$;

CREATE FUNCTION apply_log(
    new_hours hours[], new_hosts redirect_hosts[], new_clients new_client[],
    new_metadata new_metadata[], new_gates new_gate[], new_grants new_grant[], new_extensions new_extension[],
    new_granted new_granted[], new_revocations new_revocation[], new_users new_user[], new_cut_offs cut_offs[],
    host_is_new interval, burst_clients int, burst interval
) RETURNS void LANGUAGE plpgsql
-- A batch looks up a few thousand rows, that are in memory: reading all of a table for them is no better while it is small.
SET random_page_cost = 1.1 AS $$
#variable_conflict use_column
DECLARE
    keys text[];
    touched listed[];
    uses used[];
    changes counted[] := '{}';
    more counted[];
    came came[] := '{}';
BEGIN
    INSERT INTO hours SELECT * FROM unnest(new_hours)
    ON CONFLICT (hour, type) DO UPDATE SET events = hours.events + excluded.events;

    IF cardinality(new_clients) > 0 OR cardinality(new_metadata) > 0 OR cardinality(new_gates) > 0 THEN
        SELECT array_agg(client_key) INTO keys FROM (
            SELECT client_key FROM unnest(new_clients)
            UNION SELECT client_key FROM unnest(new_metadata)
            UNION SELECT client_key FROM unnest(new_gates)
        ) t;
        uses := now_used(keys, -1);
    END IF;

    IF cardinality(new_hosts) > 0 THEN
        INSERT INTO redirect_hosts SELECT * FROM unnest(new_hosts) ON CONFLICT DO NOTHING;
    END IF;

    IF cardinality(new_clients) > 0 THEN
        -- The hosts must be there: when one was first seen is looked up. An id is registered once; should it ever stand
        -- in the log again, the first counts. A registration is one of many if that which stands so many places before
        -- it, among those of its family, was shortly before it.
        WITH n AS MATERIALIZED (
            SELECT * FROM unnest(new_clients) n
            WHERE NOT EXISTS (SELECT FROM clients c WHERE c.client_key = n.client_key)
        ), paced AS (
            SELECT position, registered_at - lag(registered_at, burst_clients) OVER (
                PARTITION BY family ORDER BY position
            ) <= burst AS many
            FROM (
                SELECT family, position, registered_at FROM n
                UNION ALL
                SELECT f.family, b.registered_position, b.registered_at
                FROM (SELECT DISTINCT family FROM n) f
                CROSS JOIN LATERAL (
                    SELECT c.registered_position, c.registered_at FROM clients c
                    WHERE c.registered_family = f.family ORDER BY c.registered_position DESC LIMIT burst_clients
                ) b
            ) all_of_family
        ), registered AS (
            INSERT INTO clients (client_key, client_id, registered_position, registered_at, created_at, source,
                client_name, client_name_folded, redirect_uris, redirect_text, labels, scope, grant_types,
                token_endpoint_auth_method, family, registered_family, flags, metadata, new_redirect_host,
                many_registrations)
            SELECT n.client_key, n.client_id, n.position, n.registered_at, n.created_at, n.source, n.client_name,
                n.folded, n.redirect_uris::text[], n.redirect_text, n.labels::text[] || ('source:' || n.source),
                n.scope, n.grant_types::text[], n.auth_method, n.family, n.family, n.flags::text[], n.metadata,
                EXISTS (
                    SELECT FROM redirect_hosts h
                    WHERE h.host = ANY(n.redirect_hosts::text[]) AND h.first_seen_at > n.registered_at - host_is_new
                ),
                coalesce(p.many, false)
            FROM n JOIN paced p USING (position)
            RETURNING client_key, registered_position, created_at
        ), standing AS (
            INSERT INTO standings AS s (client_key, registered_position, created_at) SELECT * FROM registered
            ON CONFLICT (client_key) DO UPDATE SET registered_position = excluded.registered_position,
                created_at = excluded.created_at
        )
        SELECT array_agg((client_key, registered_position)::came) INTO came FROM registered;
    END IF;

    IF cardinality(new_metadata) > 0 THEN
        UPDATE clients c SET client_name = n.client_name, client_name_folded = n.folded,
            redirect_uris = n.redirect_uris::text[], redirect_text = n.redirect_text,
            labels = n.labels::text[] || ('source:' || c.source), scope = n.scope,
            grant_types = n.grant_types::text[], token_endpoint_auth_method = n.auth_method, family = n.family,
            flags = n.flags::text[], metadata = n.metadata,
            new_redirect_host = EXISTS (
                SELECT FROM redirect_hosts h
                WHERE h.host = ANY(n.redirect_hosts::text[]) AND h.first_seen_at > n.changed_at - host_is_new
            )
        FROM unnest(new_metadata) n
        WHERE c.client_key = n.client_key AND c.registered_position < n.position;
    END IF;

    IF cardinality(new_gates) > 0 THEN
        UPDATE clients c SET suspended_position = n.suspended_position, deleted_position = n.deleted_position,
            deleted_at = n.deleted_at
        FROM (
            SELECT DISTINCT ON (client_key) g.* FROM unnest(new_gates) g JOIN clients USING (client_key)
            WHERE position > registered_position
            ORDER BY client_key, g.deleted_position, position DESC  -- those without a deletion come last
        ) n
        WHERE c.client_key = n.client_key AND c.deleted_position IS NULL;
        WITH changed AS (
            UPDATE standings s SET status = n.status
            FROM (SELECT DISTINCT client_key FROM unnest(new_gates)) g
            JOIN to_list n USING (client_key) JOIN standings o USING (client_key)
            WHERE s.client_key = n.client_key AND o.status <> n.status
            RETURNING s.active_grants - o.active_grants AS more
        )
        UPDATE totals SET active_grants = active_grants + c.more
        FROM (SELECT sum(more) AS more FROM changed) c WHERE c.more <> 0;
    END IF;

    IF keys IS NOT NULL THEN
        -- From the rows as they are by now: whatever of this happened to a client, and in whichever order.
        SELECT array_agg(
            (n.registered_position, n.client_key, n.created_at, n.traits, n.name, n.redirects_key, n.labels)::listed
        ) INTO touched
        FROM unnest(keys) AS client_key JOIN to_list n USING (client_key);
        INSERT INTO redirections (redirects_key, traits, clients, redirects, hosts)
        SELECT t.redirects_key, t.traits, 0, n.redirects, n.hosts
        FROM (
            SELECT DISTINCT ON (redirects_key, traits) redirects_key, traits, client_key FROM unnest(touched) t
            WHERE NOT EXISTS (
                SELECT FROM redirections r WHERE r.redirects_key = t.redirects_key AND r.traits = t.traits
            )
        ) t JOIN to_list n USING (client_key);
        -- New ones first: what changes takes away texts that no client has any more, but for those.
        INSERT INTO listed (registered_position, client_key, created_at, traits, name, redirects_key, labels)
        SELECT registered_position, client_key, created_at, traits, name, redirects_key, labels FROM unnest(touched)
        ON CONFLICT DO NOTHING;
        UPDATE listed l SET traits = n.traits, name = n.name, redirects_key = n.redirects_key, labels = n.labels
        FROM unnest(touched) n
        WHERE l.registered_position = n.registered_position AND (l.traits, l.name, l.redirects_key, l.labels)
            IS DISTINCT FROM (n.traits, n.name, n.redirects_key, n.labels);
        PERFORM count_used(uses || now_used(keys, 1));
    END IF;

    IF cardinality(new_grants) > 0 THEN
        BEGIN
            more := issue(new_grants, new_revocations);
        EXCEPTION WHEN unique_violation THEN
            -- An id is issued once. Should a second `issued` ever stand in the log, the first counts. Looking for it
            -- each time, as ON CONFLICT does, takes as long as writing to one more index.
            more := issue(
                (
                    SELECT array_agg(n) FROM unnest(new_grants) n
                    WHERE NOT EXISTS (
                        SELECT FROM grants g WHERE g.client_key = n.client_key AND g.grant_key = n.grant_key
                    )
                ),
                new_revocations
            );
        END;
        changes := changes || more;
    END IF;

    IF cardinality(new_extensions) > 0 THEN
        UPDATE grants g SET logged_expires_at = n.expires_at, lapses_at = n.lapses_at
        FROM unnest(new_extensions) n
        WHERE g.client_key = n.client_key AND g.grant_key = n.grant_key AND g.issued_position < n.position;
    END IF;

    IF cardinality(new_revocations) > 0 THEN
        WITH changed AS (
            UPDATE grants g SET revoked_position = n.position, revoked_at = n.at, revoked_reason = n.reason,
                open = false
            FROM (
                SELECT DISTINCT ON (n.client_key, n.grant_key) n.*, o.open AS was_open
                FROM unnest(new_revocations) n
                JOIN grants o ON o.client_key = n.client_key AND o.grant_key = n.grant_key
                    AND o.issued_position < n.position AND o.revoked_position IS NULL
                ORDER BY n.client_key, n.grant_key, n.position
            ) n
            WHERE g.client_key = n.client_key AND g.grant_key = n.grant_key
            RETURNING g.client_key, g.user_key, n.was_open
        )
        SELECT array_agg((client_key, user_key, 0, -1)::counted) INTO more FROM changed WHERE was_open;
        changes := changes || more;
    END IF;

    IF cardinality(new_users) > 0 THEN
        WITH added AS (
            INSERT INTO users (user_key, granted) SELECT user_key, granted FROM unnest(new_users) ON CONFLICT DO NOTHING
            RETURNING user_key
        ), granting AS (
            UPDATE users u SET granted = true FROM unnest(new_users) n
            WHERE u.user_key = n.user_key AND n.granted AND NOT u.granted
        )
        UPDATE totals SET users = users + a.more FROM (SELECT count(*) AS more FROM added) a WHERE a.more > 0;
    END IF;

    IF cardinality(new_cut_offs) > 0 THEN
        INSERT INTO cut_offs SELECT * FROM unnest(new_cut_offs);
        UPDATE users u SET cut_off_position = last.position
        FROM (SELECT user_key, max(position) AS position FROM unnest(new_cut_offs) GROUP BY user_key) last
        WHERE u.user_key = last.user_key;
    END IF;

    IF cardinality(new_extensions) > 0 OR cardinality(new_cut_offs) > 0 THEN
        WITH touched AS (
            SELECT g.client_key, g.grant_key FROM unnest(new_extensions) JOIN grants g USING (client_key, grant_key)
            UNION
            SELECT g.client_key, g.grant_key FROM grants g
            WHERE g.user_key IN (SELECT user_key FROM unnest(new_cut_offs)) AND g.open
        ), changed AS (
            UPDATE grants g SET open = NOT g.open
            FROM touched t JOIN grants o USING (client_key, grant_key) LEFT JOIN users u USING (user_key)
            WHERE g.client_key = t.client_key AND g.grant_key = t.grant_key AND o.open <> (
                o.revoked_position IS NULL AND coalesce(u.cut_off_position, 0) < o.issued_position
                AND o.lapses_at > now()
            )
            RETURNING g.client_key, g.user_key, g.open
        )
        SELECT array_agg((client_key, user_key, 0, CASE WHEN open THEN 1 ELSE -1 END)::counted) INTO more FROM changed;
        changes := changes || more;
    END IF;

    IF cardinality(changes) > 0 OR cardinality(new_granted) > 0 OR cardinality(new_grants) > 0 THEN
        PERFORM count_grants(changes, new_granted || (
            SELECT array_agg((client_key, position, issued_at)::new_granted) FROM unnest(new_grants)
        ), came);
    END IF;
END $$;

-- Close grants whose time is over, at most `most`; how many. Reads look at the time themselves: this keeps the counts of
-- all clients, which cannot.
CREATE FUNCTION close_lapsed(most int) RETURNS bigint LANGUAGE plpgsql
-- The few that are due, each second: not out of all, whatever is known of a table that was filled just now.
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    changes counted[];
BEGIN
    WITH due AS (
        SELECT client_key, grant_key FROM grants WHERE open AND lapses_at <= now() ORDER BY lapses_at LIMIT most
    ), changed AS (
        UPDATE grants g SET open = false FROM due d WHERE g.client_key = d.client_key AND g.grant_key = d.grant_key
        RETURNING g.client_key, g.user_key
    )
    SELECT array_agg((client_key, user_key, 0, -1)::counted) INTO changes FROM changed;
    IF changes IS NOT NULL THEN
        PERFORM count_grants(changes, '{}', '{}');
    END IF;
    RETURN coalesce(cardinality(changes), 0);
END $$;
