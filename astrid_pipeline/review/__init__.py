"""What people decide: the vetting page and the REST API, as one FastAPI application (`app.create_app`)."""
