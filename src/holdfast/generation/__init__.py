"""From a request to the end of its stream: admission, the providers of its model, attempts.

    launcher     the one place where generations begin
    generation   a request that was started; the stream's source while it waits in the queue
    pump         the stream's source while it runs: tries the targets of the route
    attempt      one try at one provider: its answer into the stream, its deadlines
    route        the targets of a model, in which order they are tried
    routes       the routes of all models, and the providers behind them

It stands on `admission` (who may, when), `streams` (where entries go) and `upstream` (how providers are reached).
"""
