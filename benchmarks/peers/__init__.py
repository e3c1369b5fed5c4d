"""Other ways to run the same networks, side by side with ours, each in an environment of its own."""
