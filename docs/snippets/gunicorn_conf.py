bind = "127.0.0.1:8000"
workers = 2
worker_class = "geventws.integrations.gunicorn.Worker"


def post_worker_init(worker):
    # Not before: each worker process has http servers of its own.
    from chat import server

    server.mount(http_server=worker.http_servers, path="/ws")
