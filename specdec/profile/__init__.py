"""Would a draft pay, how much, with which settings, and what does a token then cost: `specdec profile`."""
