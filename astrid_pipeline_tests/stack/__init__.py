"""The services of docker-compose.yml as processes of this machine, whole nights through them, and what kills them."""
