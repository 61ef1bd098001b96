"""From many run folders to tables and a page: what varied between them, what it did, and how sure that is."""
