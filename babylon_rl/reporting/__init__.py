"""What the loop came to: its numbers and curves read from the database, and the page that shows its state."""
