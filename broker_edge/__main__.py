"""`python -m broker_edge`."""

from broker_edge.cli import main

main()
