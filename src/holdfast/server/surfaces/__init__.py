"""What clients can speak with. A surface is given the `Services` of the process and returns its routes.

generations        `POST` of one dialect, streamed or whole: `/v1/chat/completions` is one entry of the table
holdfast_session   the session protocol, and bare payloads, on `/v1/ws/stream`
streams            `/v1/streams/{id}`: any stream, from any position
models             `/v1/models`
keys               `/v1/client_tokens`, and the admin's `/v1/admin/keys`
operations         probes, `/v1/pool`, `/v1/limits`
bounds             what `/v1/limits` shows: every bound with its present use

No surface knows a field of an API: those that start generations are made with a dialect. `holdfast.app` has the
table of the gateway's own surfaces; others are handed to `Gateway(surfaces=...)`.
"""
