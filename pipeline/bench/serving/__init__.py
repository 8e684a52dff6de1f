"""`kvfold bench --serve`: kvfold's server under load, beside the same work in process and other servers."""
