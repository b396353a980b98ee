"""The grader: compiles and runs programs in a sandbox, in processes of its own (`pool`), and says how they did."""
