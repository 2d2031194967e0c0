"""What a run would send and take, by calculation; and a choice by it.

`chips` is for pods, `choice` for slow links or a budget of bits.
"""
