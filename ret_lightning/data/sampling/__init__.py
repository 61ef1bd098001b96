"""Which training rows make which batch on which rank, in which mixture."""
