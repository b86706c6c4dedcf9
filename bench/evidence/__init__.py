"""How often the test that lets rows serve is wrong, and how soon it is right, simulated."""
