"""What an API means: of a client that speaks it, and of a provider that does. Pure: no I/O, no state.

    ask            a request in the terms that all APIs share: model, bounds, the bytes
    dialect        the interface: requests and answers, errors, Server-Sent Events
    chat           OpenAI's chat completions
    chat_requests  reads and writes their requests
    chat_answers   the readers of their answers
    chat_forms     an answer that is streamed, written as one that is not, and the other way round
    chat_lenient   chunks and completions with faults, as far as they can be understood
    chat_errors    what their providers say of an error
    beginning      what the body of an answer is, by its first bytes
    failure        what a stream that did not complete is to an HTTP client
    table          which dialects there are, and which client's can be answered by which provider's
    endpoint       one provider's dialect with its address, credentials and options

To add an API: one file with a `Dialect`, its line in `table`, and a `Translation` for each pair that needs one.
Translation happens once, before the log: the log holds entries in the client's dialect.
"""
