"""Published figures, the records they are drawn from, and the code that draws them."""
