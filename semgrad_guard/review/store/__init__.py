"""The queue in a database: tables, moves between states, and what is read, delivered and learnt from them."""
