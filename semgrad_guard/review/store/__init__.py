"""The queue in a database: tables, moves between states, and what is read, told and learnt from them."""
